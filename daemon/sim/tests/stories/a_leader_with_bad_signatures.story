# The leader sends everything twice: with a spoiled signature, then as it should be. Nothing is lost but the others' time, so that it is
# left all the same.

> liar 1 bad-signature 1
> write 2 a
> run 500
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
2: acknowledges write 1 at revision 2
2 3 4: suspects term 0
1 2 3 4: enters term 1, with block 2
2: starts term 1 at block 2
1 2 3 4: executes block 3 of term 1, empty
> write 3 b
> end
1 2 3 4: executes block 4 of term 1, one batch
3: acknowledges write 2 at revision 3
1 2 3 4: is in term 1, and has committed block 4
