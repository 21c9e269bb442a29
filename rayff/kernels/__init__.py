"""How one layer computes fast: convolution backends, the pointwise pass, CUDA graphs."""
