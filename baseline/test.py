"""Write the GLUE submission files of a baseline run: accelerate launch -m baseline.test --task_name rte"""

from common.prediction import predict
from baseline.method import Baseline

if __name__ == "__main__":
    predict(Baseline)
