# The communication node shows certificates that are none.

> protocol ccro
> liar 2 forged-tally 1
> run 200
> write 3 a
> run 100
> write 4 b
> run 100
> end
