"""Write the GLUE submission files of a LoHa run: accelerate launch -m loha.test --task_name mrpc"""

from common.prediction import predict
from loha.method import Loha

if __name__ == "__main__":
    predict(Loha)
