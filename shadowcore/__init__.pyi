from shadowcore.library.decoding import SparseDecoder as SparseDecoder
from shadowcore.library.decoding import benchmark as benchmark
from shadowcore.library.decoding import decoder as decoder
from shadowcore.library.predictor import Predictor as Predictor
from shadowcore.library.quality import evaluate as evaluate
from shadowcore.library.quality import perplexity as perplexity
from shadowcore.library.sparse import SparseCausalLM as SparseCausalLM
from shadowcore.library.sparse import sparsify as sparsify
from shadowcore.library.training import train_predictor as train_predictor

__version__: str
