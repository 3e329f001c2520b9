# The leader shows some members one block, and others another. Whoever sees both proves it, and its term is over.

> liar 1 equivocate 1
> write 2 a
> write 3 b
> run 100
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, empty
> run 1000
1 2 3 4: executes block 3 of term 0, empty
1 2 3 4: executes block 4 of term 0, empty
1 2 3 4: executes block 5 of term 0, empty
1 2 3 4: executes block 6 of term 0, empty
1 2 3 4: executes block 7 of term 0, empty
2 3 4: suspects term 0
1 2 3 4: executes block 8 of term 0, empty
1 2 3 4: executes block 9 of term 0, empty
1 2 3 4: executes block 10 of term 0, empty
1 2 3 4: executes block 11 of term 0, empty
1 2 3 4: executes block 12 of term 0, empty
1 2 3 4: enters term 1, with block 12
2: starts term 1 at block 12
1 2 3 4: executes block 13 of term 1, empty
1 2 3 4: executes block 14 of term 1, 2 batches
2: acknowledges write 1 at revision 3
3: acknowledges write 2 at revision 2
> end
1 2 3 4: is in term 1, and has committed block 14
