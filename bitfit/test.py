"""Write the GLUE submission files of a run with BitFit: accelerate launch -m bitfit.test --task_name mrpc"""

from bitfit.method import BitFit
from common.prediction import predict

if __name__ == "__main__":
    predict(BitFit)
