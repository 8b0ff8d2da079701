"""Write the GLUE submission files of a DoRA run: accelerate launch -m dora.test --task_name mrpc"""

from common.prediction import predict
from dora.method import Dora

if __name__ == "__main__":
    predict(Dora)
