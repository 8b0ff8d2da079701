"""Write the GLUE submission files of a baseline run: accelerate launch -m baseline.test --task_name rte"""

from baseline.method import Baseline
from common.prediction import predict

if __name__ == "__main__":
    predict(Baseline)
