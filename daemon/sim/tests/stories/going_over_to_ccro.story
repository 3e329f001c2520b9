# An operator has the cluster go over from pbft to ccro. The leader hands its term on when it has led it for ten
# time-outs, and writes go on.

> protocol pbft
> write 1 a
> run 50
1: has everybody gather the votes
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
1: acknowledges write 1 at revision 2
> switch 3 ccro
> write 2 b
> run 10
1 2 3 4: executes block 3 of term 0, one batch
1 2 3 4: executes block 4 of term 0, one batch
2: acknowledges write 3 at revision 3
> write 4 c
> run 500
1 2 3 4: executes block 5 of term 0, one batch
4: acknowledges write 4 at revision 4
> run 3000
1 2 4: suspects term 0
1 2 3 4: enters term 1, with block 5
2: starts term 1 at block 5
2: has member 3 gather the votes
1 2 3 4: executes block 6 of term 1, empty
> write 1 d
> run 100
1 2 3 4: executes block 7 of term 1, one batch
1: acknowledges write 5 at revision 5
> end
1 2 3 4: is in term 1, and has committed block 7
