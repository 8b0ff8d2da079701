"""Write the GLUE submission files of a run with LN tuning: accelerate launch -m lntuning.test --task_name mrpc"""

from common.prediction import predict
from lntuning.method import LnTuning

if __name__ == "__main__":
    predict(LnTuning)
