# A voter says at every block that it was left out, before anybody could have served it. Those who
# serve lose a little of their trust, so that they take turns, and nobody waits.

> protocol ccro
> liar 4 cry-late 1
> write 3 a
> run 100
1: has member 2 gather the votes
4: votes for block 1 again, to everybody
1 2 3 4: executes block 1 of term 0, empty
4: votes for block 2 again, to everybody
1 2 3 4: executes block 2 of term 0, one batch
3: acknowledges write 1 at revision 2
> write 1 b
1: has member 3 gather the votes
> run 100
4: votes for block 3 again, to everybody
1 2 3 4: executes block 3 of term 0, one batch
1: acknowledges write 2 at revision 3
> write 2 c
> run 100
4: votes for block 4 again, to everybody
1 2 3 4: executes block 4 of term 0, one batch
2: acknowledges write 3 at revision 4
> write 3 d
> run 100
1: has member 4 gather the votes
4: votes for block 5 again, to everybody
1 2 3 4: executes block 5 of term 0, one batch
3: acknowledges write 4 at revision 5
> end
1 2 3 4: is in term 0, and has committed block 5
