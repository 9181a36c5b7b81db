"""Packing: where low-bit codes, their scales and the positions of sparse ones stand in memory.

========================  ==========================================================================
`packings`                `PACKINGS`, `pack`, `unpack`: codes to words and back, a table of data
`streams`                 bits of codes in the bits of words, which every packing rests on
`scales`                  the orders of scales that tensor-core kernels read: cuBLAS and Marlin
`sparse24`                2:4 sparsity: compressed values, metadata words, CUTLASS's order of these
========================  ==========================================================================
"""
