# The communication node serves the leader alone. Those that are left out fall back, which costs it its trust.

> protocol ccro
> liar 2 selective-collector 1
> run 200
> write 3 a
> run 100
> write 4 b
> run 100
> end
