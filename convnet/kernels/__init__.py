"""Optional fast forms of a few operations: each gives what its plain form gives, which stays the truth.

In C, for the CPU, where there is a compiler:

    norm_pool_cpu.py  ReLU, local response normalisation and max-pooling as one
    augment_cpu.py    stored pictures -> the net's input

In Triton, for CUDA devices:

    norm.py           local response normalisation
    norm_pool.py      ReLU, local response normalisation and overlapping max-pooling as one
    augmentation.py   stored pictures -> the net's input
    dropout.py        dropout from a counter: no mask in memory
    sgd.py            the papers' update rule over one flat buffer

In plain torch, for any device:

    conv1.py          a convolution with a large stride as one with stride 1
"""
