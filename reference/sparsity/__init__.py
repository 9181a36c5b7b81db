"""Sparsity: which weights and activations stay, by which rule, and which masks are right where ties leave it open.

========================  ==========================================================================================
module                    what stays
========================  ==========================================================================================
`patterns`                N:M: n of every m neighbours, along rows, columns or both; the admissible masks where several
                          are right
`permutation`             the order of columns under which an N:M pattern keeps the most
`activations`             ReLU, TEAL, CATS: activations beyond a threshold, and products that skip the others
========================  ==========================================================================================

How 2:4 sparse matrices stand in memory is `lowbit_cts.reference.packing.sparse24`.
"""
