# The leader tells the node that votes come to the leader, and the voters that they go to the node: it looks as if it served
# nobody. That costs time; the next leader, who named nobody yet, trusts it like the others.

> protocol ccro
> liar 1 split-routes 1
> write 3 a
> run 200
1: has member 3 gather the votes
1 2 4: votes for block 1 again, to everybody
1 2 3 4: executes block 1 of term 0, empty
2 4: votes for block 2 again, to everybody
1 2 3 4: executes block 2 of term 0, one batch
3: acknowledges write 1 at revision 2
> write 4 b
> run 200
1 2 4: votes for block 3 again, to everybody
1 2 3 4: executes block 3 of term 0, one batch
4: acknowledges write 2 at revision 3
> crash 1
1: crashes
> run 1500
2 3 4: suspects term 0
2 3 4: enters term 1, with block 3
2: starts term 1 at block 3
2: has member 3 gather the votes
2 3 4: executes block 4 of term 1, empty
> write 3 c
> run 100
2 3 4: executes block 5 of term 1, one batch
3: acknowledges write 3 at revision 4
> end
1: starts again
1: suspects term 0
1: enters term 1, with block 3
1: executes block 4 of term 1, empty
1: executes block 5 of term 1, one batch
1 2 3 4: is in term 1, and has committed block 5
