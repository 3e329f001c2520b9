# Two of four are dead: nothing is committed, nothing is forgotten.

> crash 3
3: crashes
> crash 4
4: crashes
> write 1 a
> run 1000
1 2: suspects term 0
> start 3
3: starts again
> run 1000
1 2 3: executes block 1 of term 0, empty
1 2 3: executes block 2 of term 0, one batch
1: acknowledges write 1 at revision 2
> end
4: starts again
4: executes block 1 of term 0, empty
4: executes block 2 of term 0, one batch
1 2 3 4: is in term 0, and has committed block 2
