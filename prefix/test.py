"""Write the GLUE submission files of a run with prefix tuning: accelerate launch -m prefix.test --task_name mrpc"""

from common.prediction import predict
from prefix.method import PrefixTuning

if __name__ == "__main__":
    predict(PrefixTuning)
