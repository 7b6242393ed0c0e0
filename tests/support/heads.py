""""""

from src.connectivity.groups import attention_groups, channel_groups


def heads(model):
    return [qk.heads for qk, _ in attention_groups(channel_groups(model))]
