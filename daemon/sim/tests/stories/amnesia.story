# A member forgets over a restart what it has promised. It is one of the f: the others go on, and agree.

> liar 4 amnesia 3
> write 1 a
> run 50
1 2 3 4: executes block 1 of term 0, empty
1 2 3 4: executes block 2 of term 0, one batch
1: acknowledges write 1 at revision 2
> crash 4
4: crashes
> start 4
4: starts again
> write 2 a
> run 50
1 2 3 4: executes block 3 of term 0, one batch
2: acknowledges write 2 at revision 3
> crash 1
1: crashes
> run 1000
2 3 4: suspects term 0
2 3 4: enters term 1, with block 3
2: starts term 1 at block 3
2 3 4: executes block 4 of term 1, empty
> crash 4
4: crashes
> start 4
4: starts again
> start 1
1: starts again
> run 500
1: suspects term 0
1: enters term 1, with block 3
1: executes block 4 of term 1, empty
> read 3 a
> run 100
3: answers read 1: a is 2, of revision 3
> end
1 2 3 4: is in term 1, and has committed block 4
