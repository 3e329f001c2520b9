# The communication node keeps the certificates to itself. That costs one fall-back, and it is named no more.

> protocol ccro
> liar 2 silent-collector 1
> run 200
1: has member 2 gather the votes
1 2 3 4: executes block 1 of term 0, empty
1 3 4: votes for block 1 again, to everybody
> write 3 a
> run 100
1: has member 3 gather the votes
1 2 3 4: executes block 2 of term 0, one batch
3: acknowledges write 1 at revision 2
> write 4 b
> run 100
1 2 3 4: executes block 3 of term 0, one batch
4: acknowledges write 2 at revision 3
> end
1 2 3 4: is in term 0, and has committed block 3
