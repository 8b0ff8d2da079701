"""Write the GLUE submission files of a run with diff pruning: accelerate launch -m diffpruning.test --task_name mrpc"""

from common.prediction import predict
from diffpruning.method import DiffPruning

if __name__ == "__main__":
    predict(DiffPruning)
