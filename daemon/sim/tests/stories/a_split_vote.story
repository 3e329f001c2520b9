# Two and two: no half is a quorum, so nothing is decided, and no term changes, until they meet again.

> write 1 a
> run 50
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
1: acknowledges write 1 at revision 2
> cut 1 2 | 3 4
> write 2 b
> write 4 c
> run 1000
1 2 3 4: suspects term 0
> mend
> run 2000
1 2 3 4: executes block 3 of term 0, one batch
2: acknowledges write 2 at revision 3
1 2 3 4: executes block 4 of term 0, one batch
4: acknowledges write 3 at revision 4
1 2 3 4: enters term 1, with block 4
2: starts term 1 at block 4
1 2 3 4: executes block 5 of term 1, empty
> end
1 2 3 4: is in term 1, and has committed block 5
