# The leader dies with a write under way. The next one takes over what it had certified, and nothing is lost.

> write 2 a
> run 50
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
2: acknowledges write 1 at revision 2
> write 3 b
> crash 1
1: crashes
> run 1000
2 3 4: suspects term 0
2 3 4: enters term 1, with block 2
2: starts term 1 at block 2
2 3 4: executes block 3 of term 1, empty
2 3 4: executes block 4 of term 1, one batch
3: acknowledges write 2 at revision 3
> read 4 b
> run 50
4: answers read 1: b is 2, of revision 3
> start 1
1: starts again
> run 500
1: suspects term 0
1: enters term 1, with block 2
1: executes block 3 of term 1, empty
1: executes block 4 of term 1, one batch
> end
1 2 3 4: is in term 1, and has committed block 4
