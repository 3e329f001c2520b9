# A member was away, and the first whom it asks invents blocks. It asks somebody else.

> liar 1 lying-sync 4
> cut 4 | 2 3 1
> write 1 a
> run 50
1 2 3: executes block 1 of term 0, empty
1 2 3: executes block 2 of term 0, one batch
1: acknowledges write 1 at revision 2
> write 2 a
> run 50
1 2 3: executes block 3 of term 0, one batch
2: acknowledges write 2 at revision 3
> mend
> run 1000
4: executes block 1 of term 0, empty
4: executes block 2 of term 0, one batch
4: executes block 3 of term 0, one batch
> read 4 a
> run 100
4: answers read 1: a is 2, of revision 3
> end
1 2 3 4: is in term 0, and has committed block 3
