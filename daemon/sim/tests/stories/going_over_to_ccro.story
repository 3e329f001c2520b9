# An operator has the cluster go over from pbft to ccro. The leader hands its term on, and writes go on.

> protocol pbft
> write 1 a
> run 50
> switch 3 ccro
> write 2 b
> run 10
> write 4 c
> run 400
> write 1 d
> run 100
> end
