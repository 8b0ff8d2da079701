"""Write the GLUE submission files of an adapter run: accelerate launch -m adapters.test --task_name mrpc"""

from adapters.method import Adapters
from common.prediction import predict

if __name__ == "__main__":
    predict(Adapters)
