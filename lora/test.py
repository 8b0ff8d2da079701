"""Write the GLUE submission files of a LoRA run: accelerate launch -m lora.test --task_name mrpc"""

from common.prediction import predict
from lora.method import Lora

if __name__ == "__main__":
    predict(Lora)
