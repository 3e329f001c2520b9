# The leader loses nearly a third of what it sends. Blocks commit, slowly, which takes back every suspicion that something is late.
# But what it sent is missed, and it is left for one with whom nothing is.

> liar 1 drop=30% 5
> write 2 a
> run 500
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
2: acknowledges write 1 at revision 2
2: suspects term 0
> write 3 b
> run 500
1 2 3 4: executes block 3 of term 0, one batch
3: acknowledges write 2 at revision 3
3 4: suspects term 0
1 2 3 4: enters term 1, with block 3
2: starts term 1 at block 3
1 2 3 4: executes block 4 of term 1, empty
> write 4 c
> run 500
1 2 3 4: executes block 5 of term 1, one batch
4: acknowledges write 3 at revision 4
> write 2 d
> run 500
1 2 3 4: executes block 6 of term 1, one batch
2: acknowledges write 4 at revision 5
> write 3 e
> end
1 2 3 4: executes block 7 of term 1, one batch
3: acknowledges write 5 at revision 6
1 2 3 4: is in term 1, and has committed block 7
