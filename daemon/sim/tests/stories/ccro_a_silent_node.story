# The communication node keeps the certificates to itself. That costs one fall-back, and it is named no more.

> protocol ccro
> liar 2 silent-collector 1
> run 200
> write 3 a
> run 100
> write 4 b
> run 100
> end
