%% @doc What `why/1' tells about a task.
-module(execution_why_tests).

-include_lib("eunit/include/eunit.hrl").

sentence(Task) ->
    execution_why:sentence(maps:merge(#{live => none, attempt_list => []}, Task), 100000).

contains(Text, Sentence) ->
    binary:match(Sentence, Text) =/= nomatch.

a_sentence_for_each_state_test_() ->
    Live = #{executor => <<"langchain">>, since_ms => 98000, worker => <<"langchain-3">>, host_pid => 41822, attempt => 2,
             state => running, waiting => <<>>},
    [?_assert(contains(<<"on langchain-3 (os pid 41822)">>, sentence(#{state => running, live => Live}))),
     ?_assert(contains(<<"waits for a worker of langchain">>,
                       sentence(#{state => running, live => Live#{waiting => <<"a worker of langchain">>}}))),
     ?_assert(contains(<<"every slot for langchain">>, sentence(#{state => queued, live => Live}))),
     ?_assert(contains(<<"next attempt after WORKER_CRASHED">>,
                       sentence(#{state => waiting, waiting_for => <<"RETRY">>,
                                  attempt_list => [#{number => 1, outcome => <<"lost">>, cause => <<"WORKER_CRASHED">>}]}))),
     ?_assert(contains(<<"attempt 1 ended lost by WORKER_CRASHED">>,
                       sentence(#{state => succeeded, create_ms => 1000, end_ms => 4000, executor => <<"langchain">>,
                                  attempt_list => [#{number => 1, outcome => <<"lost">>, cause => <<"WORKER_CRASHED">>},
                                                   #{number => 2, outcome => <<"succeeded">>, cause => <<>>}]}))),
     ?_assert(contains(<<"FAILED after 3.0 s: POISON_TASK (too often)">>,
                       sentence(#{state => failed, create_ms => 1000, end_ms => 4000, reason => <<"POISON_TASK">>,
                                  message => <<"too often">>})))].
