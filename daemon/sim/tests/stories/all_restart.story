# All members lose power at once. What was acknowledged is there afterwards; the leader has resigned.

> write 3 a
> run 50
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
3: acknowledges write 1 at revision 2
> crash 1
1: crashes
> crash 2
2: crashes
> crash 3
3: crashes
> crash 4
4: crashes
> start 1
1: starts again
> start 2
2: starts again
> start 3
3: starts again
> start 4
4: starts again
> read 2 a
> run 1000
2: answers read 1: a is 1, of revision 2
1 2 4: suspects term 0
1 2 3 4: enters term 1, with block 2
2: starts term 1 at block 2
1 2 3 4: executes block 3 of term 1, empty
> end
1 2 3 4: is in term 1, and has committed block 3
