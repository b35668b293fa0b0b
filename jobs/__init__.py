"""What a job is: request, record, events, queue, results in storage; neither HTTP nor tensors."""
