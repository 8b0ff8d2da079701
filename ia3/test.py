"""Write the GLUE submission files of an (IA)3 run: accelerate launch -m ia3.test --task_name mrpc"""

from common.prediction import predict
from ia3.method import Ia3

if __name__ == "__main__":
    predict(Ia3)
