# The leader leaves out one member's writes. They go to everybody, all expect them, and the next leader commits them.

> liar 1 censor 3
> write 2 a
> write 3 a
> write 4 a
> run 100
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, 2 batches
2: acknowledges write 1 at revision 3
4: acknowledges write 3 at revision 2
> run 1500
2 3 4: suspects term 0
1 2 3 4: enters term 1, with block 2
2: starts term 1 at block 2
1 2 3 4: executes block 3 of term 1, empty
1 2 3 4: executes block 4 of term 1, one batch
3: acknowledges write 2 at revision 4
> end
1 2 3 4: is in term 1, and has committed block 4
