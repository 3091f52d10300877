"""The operators that a plan may use: pure computation, nothing else.

None of these opens a file or a socket, calls Python, loads code, or reaches a resource
that another graph can name (variables, tables and queues have shared names, so they are
left out). Dataset and iterator operators are those that iterate over the data set that
the silo itself hands in.

Operators whose result may be memory that was never written are left out too: it holds
what the process freed, keys and other data included. ``Empty`` is one of them, and so
are the gradients of ``DepthwiseConv2dNative``, which return before they write anything
if an input has no elements (TensorFlow 2.21). ``DynamicStitch`` fills the gaps between
its rows with zeros since that version, which is why the extra ``tff`` asks for it.

What the list does not do: it does not bound how long a graph runs or how much memory an
operator takes (``Fill`` and ``Tile`` make any size, ``While`` never has to end), nor
does it keep a graph from copying an example into its update. Against these stand the
pinned hash, the executor's time limit, and the layers on the update.

``Assert`` is allowed because TensorFlow Federated checks shapes and ranges with it; its
error text holds values, so no text of a TensorFlow error may leave a silo.
"""

from __future__ import annotations

__all__ = ["ALLOWED_OPS"]

_STRUCTURE = """
    Assert Const EnsureShape Identity IdentityN NoOp Placeholder PreventGradient
    PlaceholderWithDefault StopGradient
"""
_CONTROL_FLOW = """
    Case Enter Exit If LoopCond Merge NextIteration PartitionedCall RefMerge Select
    SelectV2 StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile Switch
    While
"""
# Gradients of loops keep intermediate values in these; anonymous, freed with the call.
_LISTS = """
    EmptyTensorList TensorListConcatV2 TensorListElementShape TensorListFromTensor
    TensorListGather TensorListGetItem TensorListLength TensorListPopBack
    TensorListPushBack TensorListReserve TensorListSetItem TensorListStack
"""
_DATA = """
    AnonymousIteratorV3 BatchDatasetV2 IteratorGetNext IteratorGetNextAsOptional
    MakeIterator MapDataset OptionalGetValue OptionalHasValue OptionalNone
    ParallelMapDatasetV2 PrefetchDataset RangeDataset ReduceDataset RepeatDataset
    SkipDataset TakeDataset TensorDataset TensorSliceDataset ZipDataset
"""
_ARITHMETIC = """
    Abs Add AddN AddV2 AccumulateNV2 Ceil ClipByValue Cos DivNoNan Div Erf Erfc Exp
    Expm1 Floor FloorDiv FloorMod Inv InvGrad IsFinite IsInf IsNan L2Loss LeftShift
    Lgamma Log Log1p Maximum Minimum Mod Mul MulNoNan Neg Polygamma Pow Digamma RealDiv
    Reciprocal ReciprocalGrad RightShift Rint Round Rsqrt RsqrtGrad Sigmoid SigmoidGrad
    Sign Sin Sinh Cosh Sqrt SqrtGrad Square SquaredDifference Sub Tan Tanh TanhGrad
    TruncateDiv TruncateMod Xdivy Xlogy BitwiseAnd BitwiseOr BitwiseXor Invert Cast
    Bitcast
"""
_COMPARE = """
    Equal Greater GreaterEqual Less LessEqual LogicalAnd LogicalNot LogicalOr NotEqual
    ApproximateEqual
"""
_REDUCE = """
    All Any ArgMax ArgMin Bincount BroadcastGradientArgs Cumprod Cumsum DenseBincount
    EuclideanNorm HistogramFixedWidth InTopKV2 Max Mean Min Prod Sum SegmentSum TopKV2
    UnsortedSegmentMax UnsortedSegmentSum
"""
_ARRAYS = """
    BroadcastArgs BroadcastTo Concat ConcatOffset ConcatV2 Diag DiagPart DynamicStitch
    ExpandDims Fill Gather GatherNd GatherV2 InvertPermutation LinSpace MatrixBandPart
    MatrixDiagV3 MirrorPad OneHot OnesLike Pack Pad PadV2 Range Rank Reshape ReverseV2
    ScatterNd Shape ShapeN Size Slice Split SplitV Squeeze StridedSlice StridedSliceGrad
    TensorScatterAdd TensorScatterUpdate Tile Transpose Unpack Where ZerosLike
"""
_LINEAR = """
    BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum MatMul
"""
_NETWORK = """
    AvgPool AvgPoolGrad BiasAdd BiasAddGrad Conv2D Conv2DBackpropFilter
    Conv2DBackpropInput Elu EluGrad LeakyRelu LeakyReluGrad LogSoftmax MaxPool
    MaxPoolGrad MaxPoolGradGrad Relu Relu6 Relu6Grad ReluGrad Selu SeluGrad Softmax
    SoftmaxCrossEntropyWithLogits Softplus SoftplusGrad
    SparseSoftmaxCrossEntropyWithLogits
"""
# Dropout, quantisation and noise. Not suitable for privacy noise: see the plan's notes.
_RANDOM = """
    RandomStandardNormal RandomUniform RandomUniformInt Multinomial
    StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformV2 TruncatedNormal
"""

ALLOWED_OPS = frozenset(
    " ".join(
        (
            *(_STRUCTURE, _CONTROL_FLOW, _LISTS, _DATA, _ARITHMETIC, _COMPARE),
            *(_REDUCE, _ARRAYS, _LINEAR, _NETWORK, _RANDOM),
        )
    ).split()
)
