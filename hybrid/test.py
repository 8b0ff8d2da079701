"""Write the GLUE submission files of a run with several methods: accelerate launch -m hybrid.test --task_name mrpc"""

from common.prediction import predict
from hybrid.method import Hybrid

if __name__ == "__main__":
    predict(Hybrid)
