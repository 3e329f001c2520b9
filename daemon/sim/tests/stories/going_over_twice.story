# From bft-raft to ccro, and then to pbft. Each leader hands its term on when it has led it for ten time-outs; writes go on.

> write 1 a
> run 50
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
1: acknowledges write 1 at revision 2
> switch 3 ccro
> write 2 b
> run 500
1 2 3 4: executes block 3 of term 0, one batch
1 2 3 4: executes block 4 of term 0, one batch
2: acknowledges write 3 at revision 3
> run 3000
1 2 4: suspects term 0
1 2 3 4: enters term 1, with block 4
2: starts term 1 at block 4
2: has member 3 gather the votes
1 2 3 4: executes block 5 of term 1, empty
> write 4 c
> run 100
1 2 3 4: executes block 6 of term 1, one batch
4: acknowledges write 4 at revision 4
> switch 2 pbft
> write 1 d
> run 500
1 2 3 4: executes block 7 of term 1, one batch
1 2 3 4: executes block 8 of term 1, one batch
1: acknowledges write 6 at revision 5
> run 3500
1 2 3: suspects term 1
1 2 3 4: enters term 2, with block 8
3: starts term 2 at block 8
3: has everybody gather the votes
1 2 3 4: executes block 9 of term 2, empty
> write 3 e
> run 100
1 2 3 4: executes block 10 of term 2, one batch
3: acknowledges write 7 at revision 6
> end
1 2 3 4: is in term 2, and has committed block 10
