# The leader shows some members one block, and others another. Whoever sees both proves it, and its term is over.

> liar 1 equivocate 2
> write 2 a
> write 3 b
> run 100
2 3 4: proves: two proposals for 0/1
1 2 3 4: executes block 1 of term 0, empty
2 3 4: proves: two proposals for 0/2
1 2 3 4: executes block 2 of term 0, 2 batches
3: acknowledges write 2 at revision 2
2: acknowledges write 1 at revision 3
1 3 4: suspects term 0
1 2 3 4: enters term 1, with block 2
2: starts term 1 at block 2
1 2 3 4: executes block 3 of term 1, empty
> run 1000
> end
1 2 3 4: is in term 1, and has committed block 3
