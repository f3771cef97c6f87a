"""Optional fast forms of a few operations: each gives what its plain form gives, which stays the truth.

In C, for the CPU, where there is a compiler:

    norm_pool_cpu.py  ReLU, local response normalisation and max-pooling as one
    augment_cpu.py    stored pictures -> the net's input
    dropout_cpu.py    dropout from a counter
    update_cpu.py     the papers' update rule
    blocks_cpu.py     pictures as blocks of pixels
    linear_cpu.py     fully connected layers (in torch)

In Triton, for CUDA devices:

    norm.py           local response normalisation
    norm_pool.py      ReLU, local response normalisation and overlapping max-pooling as one
    augmentation.py   stored pictures -> the net's input
    dropout_cuda.py   dropout from a counter: no mask in memory
    cuda.py           what they stand on
    on_cuda.py        whether they serve on a device, and why not: nothing of Triton is loaded before that is asked
    sgd.py            the papers' update rule over one flat buffer

For any device:

    plain.py          the plain form of ReLU, response norm and pooling
    one_pass.py       the fast one of them that serves here
    dropout.py        the plain form of dropout
    planes.py         pictures as 4:2:0 planes, half their bytes
    conv1.py          a convolution with a large stride as one with stride 1
"""
