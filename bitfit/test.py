"""Write the GLUE submission files of a run with BitFit: accelerate launch -m bitfit.test --task_name mrpc"""

from common.prediction import predict
from bitfit.method import BitFit

if __name__ == "__main__":
    predict(BitFit)
