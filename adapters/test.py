"""Write the GLUE submission files of an adapter run: accelerate launch -m adapters.test --task_name mrpc"""

from common.prediction import predict
from adapters.method import Adapters

if __name__ == "__main__":
    predict(Adapters)
