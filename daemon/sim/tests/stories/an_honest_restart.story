# A follower restarts between its vote and the block's certificate. It remembers its vote, and nothing is said twice.

> write 2 a
> run 50
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
2: acknowledges write 1 at revision 2
> lose Certificate
> write 2 b
> run 3
> crash 3
3: crashes
> start 3
3: starts again
> mend
> run 500
1 2 3 4: executes block 3 of term 0, one batch
2: acknowledges write 2 at revision 3
> end
1 2 3 4: is in term 0, and has committed block 3
