# The leader shows its certificates to one member alone, and denies them afterwards.

> liar 1 hidden-lock 2
> write 2 a
> run 200
1: executes block 1 of term 0, empty
> run 1500
1 3 4: suspects term 0
2 3 4: enters term 1, with nothing certified, having voted for block 1
1: enters term 1, with nothing certified
2: starts term 1 at block 1
2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 1, empty
1 2 3 4: executes block 3 of term 1, one batch
2: acknowledges write 1 at revision 2
> end
1 2 3 4: is in term 1, and has committed block 3
