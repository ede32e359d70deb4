"""The ATen operators that a `.pt2` program may call: what diffusion models compute with, forward.

A list of what is let in, because ATen also has operators that believe their arguments: `_reshape_alias` and
`_sparse_coo_tensor_unsafe` look at no bounds, `from_file` opens files, and what ends in `_` or `out` writes where it is
told. Left out besides: backward passes, strides (`as_strided`), memory that nobody wrote (`empty`), randomness by a
generator, the `native_` forms that are told the sizes of their own inputs, and the `_aa` forms of upsampling, whose scales
decide where they read.

Some that are let in believe their arguments too, and are called behind the checks of `_torch_checked`: attention, batch
norm's `_native_` form, which decompositions make, and every upsampling.
"""

from __future__ import annotations

DEFAULT = """
_adaptive_avg_pool2d _assert_async _assert_scalar _assert_tensor_metadata _int_mm _local_scalar_dense _log_softmax
_native_batch_norm_legit_no_training _safe_softmax _scaled_mm _softmax _to_copy _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d abs absolute acos acosh
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d addbmm addcdiv
addcmul addmm addmv affine_grid_generator alias all allclose alpha_dropout amax amin aminmax any arange arctan2
argmax argmin argsort asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d
baddbmm batch_norm bilinear bitwise_not bmm broadcast_tensors broadcast_to cat ceil celu channel_shuffle chunk clamp
clamp_max clamp_min clone col2im concat concatenate constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d
convolution cos cosh cosine_similarity count_nonzero cumprod cumsum detach detach_copy diag diag_embed diagonal dot
dropout dstack einsum elu embedding equal erf erfc erfinv exp exp2 expand expand_as expm1 eye feature_dropout flip
floor floor_divide fmax fmin frac full full_like gather gelu glu grid_sampler group_norm hardshrink hardsigmoid
hardswish hardtanh hstack hypot im2col index_add index_copy index_put index_select instance_norm is_nonzero isclose
isfinite isinf isnan item layer_norm leaky_relu lift_fresh lift_fresh_copy linalg_vector_norm linear linspace log
log10 log1p log2 log_sigmoid logical_and logical_not logical_or logical_xor logit logsumexp matmul max max_pool1d
max_pool2d max_pool2d_with_indices max_pool3d maximum mean median meshgrid min minimum mish mm mv nan_to_num narrow
native_dropout neg negative new_full new_ones new_zeros nonzero numel numpy_T one_hot ones ones_like outer pad
permute pixel_shuffle pixel_unshuffle prelu prod rand rand_like randn randn_like ravel reciprocal reflection_pad1d
reflection_pad2d reflection_pad3d relu relu6 repeat replication_pad1d replication_pad2d replication_pad3d reshape
reshape_as rms_norm roll rot90 round rsqrt scalar_tensor scaled_dot_product_attention scatter_add select_scatter
selu sigmoid sign silu sin sinh slice_scatter softplus softshrink sort split split_with_sizes sqrt square squeeze
stack std std_mean sum swapaxes swapdims sym_constrain_range sym_constrain_range_for_size sym_numel t take_along_dim
tan tanh tensordot threshold tile topk tril triu trunc type_as unfold unsqueeze upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
var var_mean view view_as vstack where zeros zeros_like
"""
OVERLOADS = """
__and__.Scalar __and__.Tensor __lshift__.Scalar __lshift__.Tensor __or__.Scalar __or__.Tensor __rshift__.Scalar
__rshift__.Tensor __xor__.Scalar __xor__.Tensor _assert_async.msg
_upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec
_upsample_nearest_exact3d.vec add.Scalar add.Tensor all.dim all.dims any.dim any.dims arange.start arange.start_step
argsort.stable bitwise_and.Scalar bitwise_and.Scalar_Tensor bitwise_and.Tensor bitwise_left_shift.Scalar_Tensor
bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_or.Scalar bitwise_or.Scalar_Tensor
bitwise_or.Tensor bitwise_right_shift.Scalar_Tensor bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar
bitwise_xor.Scalar bitwise_xor.Scalar_Tensor bitwise_xor.Tensor bucketize.Scalar bucketize.Tensor clamp.Tensor
clamp_max.Tensor clamp_min.Tensor conv1d.padding conv2d.padding conv3d.padding conv_transpose2d.input
conv_transpose3d.input count_nonzero.dim_IntList div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode divide.Scalar
divide.Scalar_mode divide.Tensor divide.Tensor_mode eq.Scalar eq.Tensor eye.m flatten.using_ints floor_divide.Scalar
fmod.Scalar fmod.Tensor ge.Scalar ge.Tensor greater.Scalar greater.Tensor greater_equal.Scalar greater_equal.Tensor
gt.Scalar gt.Tensor index.Tensor index_fill.int_Scalar index_fill.int_Tensor le.Scalar le.Tensor lerp.Scalar
lerp.Tensor less.Scalar less.Tensor less_equal.Scalar less_equal.Tensor log_softmax.int lt.Scalar lt.Tensor
masked_fill.Scalar masked_fill.Tensor max.dim max.other mean.dim median.dim meshgrid.indexing min.dim min.other
moveaxis.int moveaxis.intlist movedim.int movedim.intlist mul.Scalar mul.Tensor multiply.Scalar multiply.Tensor
ne.Scalar ne.Tensor norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype not_equal.Scalar
not_equal.Tensor pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prod.dim_int remainder.Scalar
remainder.Scalar_Tensor remainder.Tensor repeat_interleave.self_int round.decimals rsub.Scalar rsub.Tensor
scatter.src scatter.value select.int slice.Tensor softmax.int sort.stable split.Tensor split.sizes squeeze.dim
squeeze.dims std.correction std.dim std_mean.correction std_mean.dim sub.Scalar sub.Tensor subtract.Scalar
subtract.Tensor sum.dim_IntList sym_size.int sym_stride.int tensor_split.indices tensor_split.sections to.device
to.dtype to.dtype_layout to.other transpose.int true_divide.Scalar true_divide.Tensor unbind.int unflatten.int
upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_linear1d.vec upsample_nearest1d.vec upsample_nearest2d.vec
upsample_nearest3d.vec upsample_trilinear3d.vec var.correction var.dim var_mean.correction var_mean.dim where.Scalar
where.ScalarOther where.ScalarSelf where.self
"""
ALLOWED = frozenset(OVERLOADS.split()) | {f"{name}.default" for name in DEFAULT.split()}
