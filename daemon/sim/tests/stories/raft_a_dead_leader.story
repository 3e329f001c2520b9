# The leader dies when one member has its last block, which may be committed for all anybody knows. The next term starts on it.

> protocol raft
> write 2 a
> run 50
> lose Certificate
> lose Heartbeat
> write 1 b
> run 5
> crash 1
> mend
> run 1500
> read 4 b
> run 50
> start 1
> run 500
> end
