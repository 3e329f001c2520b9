# A member that hears nobody suspects alone, and moves nobody. When it is back it catches up, in the same term.

> cut 4 | 1 2 3
> write 1 a
> write 2 a
> run 1000
1 2 3: executes block 1 of term 0, empty
1 2 3: executes block 2 of term 0, 2 batches
1: acknowledges write 1 at revision 3
2: acknowledges write 2 at revision 2
4: suspects term 0
> read 4 a
> mend
> run 200
4: executes block 1 of term 0, empty
4: executes block 2 of term 0, 2 batches
4: answers read 1: a is 1, of revision 3
> end
1 2 3 4: is in term 0, and has committed block 2
