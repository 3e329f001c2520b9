# The leader is as slow as it can be: writes take long, but it keeps its term. Nobody is safe from that but by a time-out.

> liar 1 slow 1
> write 2 a
> run 500
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
2: acknowledges write 1 at revision 2
> write 3 a
> run 500
1 2 3 4: executes block 3 of term 0, one batch
3: acknowledges write 2 at revision 3
> end
1 2 3 4: is in term 0, and has committed block 3
