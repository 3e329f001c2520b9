# The leader says that another state was reached. Nobody who has executed the same votes for it.

> liar 1 wrong-state 1
> write 2 a
> write 3 b
> run 100
> run 1500
2 3 4: suspects term 0
2 3 4: enters term 1, with nothing certified
1: enters term 1, with nothing certified, having voted for block 1
2: starts term 1 at block 0
1 2 3 4: executes block 1 of term 1, empty
1 2 3 4: executes block 2 of term 1, 2 batches
2: acknowledges write 1 at revision 3
3: acknowledges write 2 at revision 2
> end
1 2 3 4: is in term 1, and has committed block 2
