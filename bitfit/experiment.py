"""Score of the bias terms, all or by group: accelerate launch -m bitfit.experiment --task_name mrpc"""

from bitfit.method import SETS, BitFit
from common.experiments import sweep

if __name__ == "__main__":
    grid = [("all",), ("query_mlp",), *((group,) for group in SETS["all"])]
    sweep(BitFit(terms=terms) for terms in grid)
