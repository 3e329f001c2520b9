# The leader dies when one member has its last block, which may be committed for all anybody knows. The next term starts on it.

> protocol raft
> write 2 a
> run 50
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
2: acknowledges write 1 at revision 2
> lose Certificate
> lose Heartbeat
> write 1 b
> run 5
1: executes block 3 of term 0, one batch
1: acknowledges write 2 at revision 3
> crash 1
1: crashes
> mend
> run 1500
2 3 4: suspects term 0
2 3 4: enters term 1, with block 3
2: starts term 1 at block 3
2 3 4: executes block 3 of term 0, one batch
2 3 4: executes block 4 of term 1, empty
> read 4 b
> run 50
4: answers read 1: b is 2, of revision 3
> start 1
1: starts again
> run 500
1: suspects term 0
1: enters term 1, with block 3
1: executes block 4 of term 1, empty
> end
1 2 3 4: is in term 1, and has committed block 4
