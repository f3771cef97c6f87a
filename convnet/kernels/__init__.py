"""Fast forms of a few operations: each gives what its plain form gives, which stays the truth.

ops.py         what nets call: torch.ops.convnet, each operation with its kernels, plain form and gradients; register.py
               makes them known to torch, winograd.py and local.py hold their own
plain.py       the plain form of ReLU, response norm and pooling, and of blocks of pixels; dropout.py: of dropout
conv1.py       a convolution with a large stride as one with stride 1
winograd.py    one of 3 x 3 or 5 x 5, with a quarter or a sixth of the products
local.py       locally connected layers
planes.py      pictures as 4:2:0 planes, half their bytes
cpu/           in C, where there is a compiler: norm_pool, dropout, blocks, augment, update, winograd, local, and
               what a file's codes say; in torch: linear, response_norm
cuda/          in Triton: norm, norm_pool, dropout, augment, update; available.py: whether they serve, and why not;
               nothing of Triton is loaded before that is asked
"""
